-- The estimates of an audit beside those of the previous completed audit of the same model and prompts.
-- apart is true when the two intervals do not meet, null when an estimate has none.

WITH pairs AS (
    SELECT
        audit_id,
        lag(audit_id) OVER (PARTITION BY model, prompt_set ORDER BY started_at, audit_id) AS previous_id
    FROM audited
    WHERE state = 'completed'
),
-- Both sides of the comparison, read once.
estimates AS MATERIALIZED (
    FROM metrics
)
SELECT
    pairs.audit_id,
    pairs.previous_id,
    EXISTS (FROM accepted WHERE accepted.audit_id = pairs.previous_id) AS previous_accepted,
    now.variant, now.condition, now.metric,
    now.value, now.low, now.high, now.n,
    before.value AS previous_value, before.low AS previous_low, before.high AS previous_high, before.n AS previous_n,
    now.value - before.value AS change,
    now.low > before.high OR now.high < before.low AS apart
FROM pairs
JOIN estimates AS now ON now.audit_id = pairs.audit_id
LEFT JOIN estimates AS before
    ON before.audit_id = pairs.previous_id
    AND before.variant = now.variant
    AND before.condition IS NOT DISTINCT FROM now.condition
    AND before.metric = now.metric
