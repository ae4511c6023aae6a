-- The estimates of one audit, each variant beside its control.
-- $audit_id: NULL for the completed audit that started last.

SELECT audit_id, variant, condition, metric, value, low, high, n
FROM metrics
WHERE audit_id = coalesce($audit_id, (
    SELECT audit_id FROM audits WHERE state = 'completed' ORDER BY started_at DESC, audit_id LIMIT 1
))
ORDER BY metric, condition NULLS FIRST, variant
