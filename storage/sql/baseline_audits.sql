-- What an audit can be compared with: earlier completed audits of the same model and prompts, accepted ones first.
-- $audit_id: the audit.

WITH completed AS (
    FROM audited WHERE state = 'completed'
),
later AS (
    FROM completed WHERE audit_id = $audit_id
)
SELECT completed.audit_id, completed.started_at, max(accepted_at) AS accepted_at, any_value(completed.params) AS params
FROM completed
JOIN later
    ON later.model = completed.model
    AND later.prompt_set IS NOT DISTINCT FROM completed.prompt_set
    AND later.started_at > completed.started_at
LEFT JOIN accepted ON accepted.audit_id = completed.audit_id
GROUP BY completed.audit_id, completed.started_at
ORDER BY accepted_at DESC NULLS LAST, completed.started_at DESC, completed.audit_id
