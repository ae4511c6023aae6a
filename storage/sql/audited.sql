-- Which model an audit was of, by its name: the path of its folder, OWNER/NAME on the Hub, or 'reference'. Weights may
-- change under a name; the revision of the Hub is no part of it.

SELECT
    audit_id, prompt_set, started_at, state, params,
    CASE
        WHEN starts_with(json_extract_string(params, '$.model'), '/') THEN json_extract_string(params, '$.model')
        ELSE split_part(json_extract_string(params, '$.model'), '@', 1)
    END AS model
FROM audits
