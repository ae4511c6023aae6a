-- Which model an audit was of: the folder that was named to it; where that was no full path, the folder it stood for.

SELECT
    audit_id, prompt_set, started_at, state,
    CASE
        WHEN starts_with(json_extract_string(params, '$.model'), '/') THEN json_extract_string(params, '$.model')
        ELSE source
    END AS model
FROM audits
JOIN models USING (model_id)
