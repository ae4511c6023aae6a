-- NeMo's statistics: mean and standard deviation of every neuron's activation over non-memorized prompts.
-- $model_id: the model. $prompt_set: NULL for all sets. $kind: kind of prompts, NULL for 'null'.
-- $variant: NULL for 'original'. $layer: NULL for all.
-- Shards add up by themselves: every row of activations is one prompt, whichever part it lies in.
-- Prompts are chosen before their lists are unnested: there are thousands of neurons for each.

WITH known AS (
    SELECT site, layer, step, mean_abs
    FROM activations
    WHERE model_id = $model_id
        AND variant = coalesce($variant, 'original')
        AND ($layer IS NULL OR layer = $layer)
        AND prompt_id IN (
            SELECT prompt_id
            FROM prompts
            WHERE kind = coalesce($kind, 'null') AND ($prompt_set IS NULL OR prompt_set = $prompt_set)
        )
)
SELECT
    site, layer, step, neuron,
    count(*) AS prompts,
    avg(activation) AS mean,
    stddev_samp(activation) AS std
FROM (
    SELECT site, layer, step, unnest(range(len(mean_abs))) AS neuron, unnest(mean_abs)::DOUBLE AS activation
    FROM known
)
GROUP BY site, layer, step, neuron
ORDER BY site, layer, step, neuron
