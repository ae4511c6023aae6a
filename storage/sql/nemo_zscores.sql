-- NeMo's z-scores: how far each neuron is from its mean over non-memorized prompts, in standard deviations.
-- $model_id: the model. $prompt_id: NULL for every memorized prompt. $theta: only z above it, NULL for all.
-- $prompt_set: set of the non-memorized prompts, NULL for all sets. $variant: NULL for 'original'.
-- $layer: NULL for all. z is null for a neuron that never varies.

WITH chosen AS NOT MATERIALIZED (
    SELECT prompt_id, site, layer, step, mean_abs
    FROM activations
    WHERE model_id = $model_id
        AND variant = coalesce($variant, 'original')
        AND ($layer IS NULL OR layer = $layer)
        AND mean_abs IS NOT NULL
),
known AS (
    SELECT site, layer, step, mean_abs
    FROM chosen
    WHERE prompt_id IN (
        SELECT prompt_id FROM prompts WHERE kind = 'null' AND ($prompt_set IS NULL OR prompt_set = $prompt_set)
    )
),
statistics AS (
    SELECT site, layer, step, neuron, avg(activation) AS mean, stddev_samp(activation) AS std
    FROM (
        SELECT site, layer, step, unnest(range(len(mean_abs))) AS neuron, unnest(mean_abs)::DOUBLE AS activation
        FROM known
    )
    GROUP BY site, layer, step, neuron
),
asked AS (
    SELECT
        prompt_id, site, layer, step,
        unnest(range(len(mean_abs))) AS neuron,
        unnest(mean_abs)::DOUBLE AS activation
    FROM chosen
    WHERE prompt_id = $prompt_id
        OR ($prompt_id IS NULL AND prompt_id IN (SELECT prompt_id FROM prompts WHERE kind = 'memorized'))
)
SELECT
    asked.prompt_id, asked.site, asked.layer, asked.step, asked.neuron,
    activation, mean, std,
    abs(activation - mean) / nullif(std, 0) AS z
FROM asked
JOIN statistics
    ON statistics.site = asked.site
    AND statistics.layer = asked.layer
    AND statistics.step IS NOT DISTINCT FROM asked.step
    AND statistics.neuron = asked.neuron
WHERE $theta IS NULL OR abs(activation - mean) > $theta * std
ORDER BY asked.prompt_id, z DESC NULLS LAST, asked.layer, asked.neuron
