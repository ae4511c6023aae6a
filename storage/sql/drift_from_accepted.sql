-- Drift: the estimates of an audit beside those of the last accepted audit of the same model and prompts.
-- $audit_id: NULL for the completed audit that started last.

WITH later AS (
    FROM audited
    WHERE if($audit_id IS NULL, state = 'completed', audit_id = $audit_id)
    ORDER BY started_at DESC, audit_id
    LIMIT 1
),
baseline AS (
    SELECT audited.audit_id
    FROM audited
    JOIN accepted USING (audit_id)
    JOIN later
        ON later.model = audited.model
        AND later.prompt_set IS NOT DISTINCT FROM audited.prompt_set
        AND later.started_at > audited.started_at
    WHERE audited.state = 'completed'
    ORDER BY accepted_at DESC, audited.started_at DESC
    LIMIT 1
)
SELECT
    later.audit_id,
    baseline.audit_id AS accepted_id,
    now.variant, now.condition, now.metric,
    now.value, now.low, now.high,
    before.value AS accepted_value, before.low AS accepted_low, before.high AS accepted_high,
    now.value - before.value AS change,
    now.low > before.high OR now.high < before.low AS apart
FROM later
JOIN metrics AS now USING (audit_id)
LEFT JOIN baseline ON true
LEFT JOIN metrics AS before
    ON before.audit_id = baseline.audit_id
    AND before.variant = now.variant
    AND before.condition IS NOT DISTINCT FROM now.condition
    AND before.metric = now.metric
ORDER BY abs(change) DESC NULLS LAST, now.metric, now.condition, now.variant
