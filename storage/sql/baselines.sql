-- The baselines: of each model and set of prompts the audit that was accepted last.

SELECT audited.model, audited.prompt_set, audited.audit_id, accepted.accepted_at
FROM accepted
JOIN audited USING (audit_id)
QUALIFY row_number() OVER (
    PARTITION BY audited.model, audited.prompt_set ORDER BY accepted_at DESC, audited.started_at DESC
) = 1
ORDER BY ALL
