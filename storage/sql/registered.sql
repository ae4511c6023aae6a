-- The models that are audited every night, with the parameters of their audits.

WITH last AS (
    FROM registrations
    QUALIFY row_number() OVER (PARTITION BY name ORDER BY changed_at DESC) = 1
)
SELECT
    name,
    json_extract_string(params, '$.model') AS model,
    json_extract_string(params, '$.prompts') AS prompts,
    changed_at AS registered_at,
    params
FROM last
WHERE state = 'registered'
ORDER BY name
