-- What an audit saw: every picture that its figures rest on, the prompt it was made for, and its score.
-- A picture is scored against several training images where its prompt has several; the nearest counts. Scores against
-- images that the prompt had in another set do not.
-- $audit_id: NULL for none.

WITH pictures AS (
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
    pictures.variant, pictures.condition, pictures.metric, pictures.scorer,
    prompt_id, trigger_id, seed, generation_id,
    max(scores.value) AS value
FROM pictures
JOIN generations USING (generation_id)
JOIN scores USING (generation_id, metric, scorer)
WHERE pictures.metric <> 'sscd' OR (prompt_id, reference_id) IN (SELECT prompt_id, reference_id FROM own)
GROUP BY ALL
ORDER BY ALL
