-- Neurons shared by several prompts: those that the sets of the most prompts hold, first.
-- $model_id, $method: NULL for all. $at_least: prompts that must hold it, NULL for 2.

SELECT model_id, method, params_id, site, layer, step, member, scopes AS prompts, scope_ids AS prompt_ids
FROM shared_neurons
WHERE scope = 'prompt'
    AND ($model_id IS NULL OR model_id = $model_id)
    AND ($method IS NULL OR method = $method)
    AND scopes >= coalesce($at_least, 2)
ORDER BY prompts DESC, model_id, method, params_id, site, layer, step, member
