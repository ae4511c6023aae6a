-- An audit: the last state that was written of it.

SELECT *
FROM audit_states
QUALIFY row_number() OVER (PARTITION BY audit_id ORDER BY finished_at DESC NULLS LAST) = 1
