-- What an audit can be compared with: earlier completed audits of the same model and prompts, accepted ones first.
-- $audit_id: the audit.

WITH told AS (
    FROM audited WHERE state = 'completed'
),
asked AS (
    FROM told WHERE audit_id = $audit_id
)
SELECT told.audit_id, told.started_at, max(accepted_at) AS accepted_at, any_value(told.params) AS params
FROM told
JOIN asked
    ON asked.model = told.model
    AND asked.prompt_set IS NOT DISTINCT FROM told.prompt_set
    AND asked.started_at > told.started_at
LEFT JOIN accepted ON accepted.audit_id = told.audit_id
GROUP BY told.audit_id, told.started_at
ORDER BY accepted_at DESC NULLS LAST, told.started_at DESC, told.audit_id
