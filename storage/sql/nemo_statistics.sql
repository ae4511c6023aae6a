-- NeMo's statistics: mean and standard deviation of every neuron's activation over non-memorized prompts.
-- $model_id: the model. $prompt_set: NULL for all sets. $kind: kind of prompts, NULL for 'null'.
-- $variant: NULL for 'original'. $layer: NULL for all. $params_id: the collection, NULL for all, each for itself.

SELECT params_id, site, layer, step, neuron, prompts, mean, std
FROM statistics_of(
    of_model := $model_id,
    of_variant := $variant,
    of_layer := $layer,
    of_params := $params_id,
    of_kind := $kind,
    of_prompts := $prompt_set
)
WHERE model_id = $model_id
ORDER BY params_id, site, layer, step, neuron
