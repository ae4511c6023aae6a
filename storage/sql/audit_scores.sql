-- What an audit saw: every generation that its estimates rest on, the prompt it was made for, and its score.
-- A generation is scored against several training images where its prompt has several; the nearest counts. Scores against
-- images that the prompt had in another set do not.
-- $audit_id: NULL for none.

-- As a variable the model is known before parts are looked for, so that generations of no other model are opened.
SET VARIABLE asked_model = (SELECT model_id FROM audits WHERE audit_id = $audit_id);

WITH generated AS (
    SELECT variant, condition, metric, scorer, unnest(generation_ids) AS generation_id
    FROM evidence
    WHERE audit_id = $audit_id
),
own AS (
    SELECT DISTINCT prompt_id, unnest(image_ids) AS reference_id
    FROM prompts
    WHERE prompt_set IN (SELECT prompt_set FROM audits WHERE audit_id = $audit_id)
)
SELECT
    generated.variant, generated.condition, generated.metric, generated.scorer,
    prompt_id, trigger_id, seed, generation_id,
    max(scores.value) AS value
FROM generated
JOIN (FROM generations WHERE model_id = getvariable('asked_model')) USING (generation_id)
JOIN scores USING (generation_id, metric, scorer)
WHERE generated.metric <> 'sscd' OR (prompt_id, reference_id) IN (SELECT prompt_id, reference_id FROM own)
GROUP BY ALL
ORDER BY ALL
