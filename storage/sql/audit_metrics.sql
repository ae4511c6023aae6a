-- The estimates of one audit, each variant beside its control.
-- $audit_id: NULL for the completed audit that started last.

-- As a variable the audit is known before parts are looked for, so that those of no other audit are opened.
SET VARIABLE asked_audit = coalesce($audit_id, (
    SELECT audit_id
    FROM audits
    WHERE state = 'completed' AND $audit_id IS NULL
    ORDER BY started_at DESC, audit_id
    LIMIT 1
));

SELECT audit_id, variant, condition, metric, value, low, high, n
FROM metrics
WHERE audit_id = getvariable('asked_audit')
ORDER BY metric, condition NULLS FIRST, variant
