-- The search for one prompt's neurons, trial by trial, as NeMo made it.
-- $prompt_id: the prompt. $model_id: NULL for all.

SELECT model_id, variant, params_id, step_number, phase, theta, k, layer, neuron, score, kept, candidates
FROM nemo_traces
WHERE prompt_id = $prompt_id AND ($model_id IS NULL OR model_id = $model_id)
ORDER BY model_id, variant, params_id, step_number
