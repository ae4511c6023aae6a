-- Copies: generations of each variant under each probe that reproduce a training image, verbatim and template apart.
-- Of all audits together, whatever their steps and seeds: the figures of one audit are in `metrics`.
-- $metric: the score of a generation against its image, NULL for 'sscd'. $threshold: NULL for 0.7.
-- $model_id: NULL for all. $scorer: the model that the scores were made with, NULL for all, each for itself.

WITH scored AS (
    SELECT generation_id, scorer, max(value) AS score
    FROM scores
    WHERE metric = coalesce($metric, 'sscd') AND ($scorer IS NULL OR scorer = $scorer)
    GROUP BY generation_id, scorer
)
SELECT
    model_id, variant, probe, memorization, scorer,
    count(*) AS generations,
    count(DISTINCT coalesce(prompt_id, trigger_id)) AS asked,
    count(DISTINCT coalesce(prompt_id, trigger_id)) FILTER (score > coalesce($threshold, 0.7)) AS copied,
    avg((score > coalesce($threshold, 0.7))::INTEGER) AS share_of_generations,
    median(score) AS median_score
FROM generations
JOIN scored USING (generation_id)
LEFT JOIN (SELECT prompt_id, any_value(memorization) AS memorization FROM prompts GROUP BY prompt_id) USING (prompt_id)
WHERE $model_id IS NULL OR model_id = $model_id
GROUP BY model_id, variant, probe, memorization, scorer
ORDER BY model_id, variant, probe, memorization, scorer
