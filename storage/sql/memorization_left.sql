-- Memorization left as the best 1, 2, 4, 8, ... neurons of each prompt are deactivated, beside as many random ones.
-- The mean over prompts; random neurons are of the same layers. A prompt with fewer neurons keeps the score that all of
-- them left it.
-- $model_id: NULL for all. $params_id: the curves, NULL for all, each for itself. $prompt_ids: NULL for all.

WITH points AS (
    SELECT model_id, params_id, prompt_id, phase, candidates AS neurons, score
    FROM nemo_traces
    WHERE phase IN ('curve', 'curve-control')
        AND ($model_id IS NULL OR model_id = $model_id)
        AND ($params_id IS NULL OR params_id = $params_id)
        AND ($prompt_ids IS NULL OR list_contains($prompt_ids::VARCHAR[], prompt_id))
),
sizes AS (
    SELECT DISTINCT model_id, params_id, neurons FROM points
),
reached AS (
    SELECT
        points.model_id, points.params_id, prompt_id, phase, sizes.neurons,
        max_by(score, points.neurons) AS score
    FROM points
    JOIN sizes
        ON sizes.model_id = points.model_id
        AND sizes.params_id = points.params_id
        AND sizes.neurons >= points.neurons
    GROUP BY ALL
)
SELECT
    model_id, params_id, phase = 'curve-control' AS control, neurons,
    count(*) AS prompts,
    avg(score) AS score,
    stddev_samp(score) AS std,
    min(score) AS lowest,
    max(score) AS highest
FROM reached
GROUP BY ALL
ORDER BY model_id, params_id, control, neurons
