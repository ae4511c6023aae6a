-- Drift: the estimates of an audit beside those of the last accepted audit of the same model and prompts.
-- $audit_id: NULL for the completed audit that started last.

-- As variables the two audits are known before parts are looked for, so that those of no other audit are opened.
SET VARIABLE asked_audit = (
    SELECT audit_id
    FROM audited
    WHERE if($audit_id IS NULL, state = 'completed', audit_id = $audit_id)
    ORDER BY started_at DESC, audit_id
    LIMIT 1
);

SET VARIABLE accepted_audit = (
    SELECT audited.audit_id
    FROM audited
    JOIN accepted USING (audit_id)
    JOIN audited AS later
        ON later.model = audited.model
        AND later.prompt_set IS NOT DISTINCT FROM audited.prompt_set
        AND later.started_at > audited.started_at
    WHERE audited.state = 'completed' AND later.audit_id = getvariable('asked_audit')
    ORDER BY accepted_at DESC, audited.started_at DESC
    LIMIT 1
);

SELECT
    now.audit_id,
    getvariable('accepted_audit')::VARCHAR AS accepted_id,
    now.variant, now.condition, now.metric,
    now.value, now.low, now.high,
    before.value AS accepted_value, before.low AS accepted_low, before.high AS accepted_high,
    now.value - before.value AS change,
    now.low > before.high OR now.high < before.low AS apart
FROM metrics AS now
LEFT JOIN (FROM metrics WHERE audit_id = getvariable('accepted_audit')) AS before
    ON before.variant = now.variant
    AND before.condition IS NOT DISTINCT FROM now.condition
    AND before.metric = now.metric
WHERE now.audit_id = getvariable('asked_audit')
ORDER BY abs(change) DESC NULLS LAST, now.metric, now.condition, now.variant
