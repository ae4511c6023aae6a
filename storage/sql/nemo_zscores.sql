-- NeMo's z-scores: how far each neuron is from its mean over non-memorized prompts, in standard deviations.
-- Mirrors what NeMo selects by, `out_of_distribution` in tasks/localize/search.py.
-- $model_id: the model. $prompt_id: NULL for every memorized prompt. $theta: only z above it, NULL for all.
-- $prompt_set: set of the non-memorized prompts, NULL for all sets. $variant: NULL for 'original'.
-- $layer: NULL for all. $params_id: the collection, NULL for all, each for itself.
-- z is null for a neuron that never varies, which is above no theta.

WITH searched AS (
    SELECT
        prompt_id, params_id, site, layer, step,
        unnest(range(len(mean_abs))) AS neuron,
        unnest(mean_abs)::DOUBLE AS activation
    FROM activations
    WHERE model_id = $model_id
        AND variant = coalesce($variant, 'original')
        AND ($layer IS NULL OR layer = $layer)
        AND ($params_id IS NULL OR params_id = $params_id)
        AND mean_abs IS NOT NULL
        AND (
            prompt_id = $prompt_id
            OR ($prompt_id IS NULL AND prompt_id IN (SELECT prompt_id FROM prompts WHERE kind = 'memorized'))
        )
)
SELECT
    searched.prompt_id, searched.params_id, searched.site, searched.layer, searched.step, searched.neuron,
    activation, mean, std,
    abs(activation - mean) / nullif(std, 0) AS z
FROM searched
JOIN statistics_of(
    of_model := $model_id,
    of_variant := $variant,
    of_layer := $layer,
    of_params := $params_id,
    of_prompts := $prompt_set
) AS known
    ON known.params_id IS NOT DISTINCT FROM searched.params_id
    AND known.site = searched.site
    AND known.layer = searched.layer
    AND known.step IS NOT DISTINCT FROM searched.step
    AND known.neuron = searched.neuron
WHERE $theta IS NULL OR abs(activation - mean) / nullif(std, 0) > $theta
ORDER BY searched.prompt_id, searched.params_id, z DESC NULLS LAST, searched.layer, searched.step, searched.neuron
