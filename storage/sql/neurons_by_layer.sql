-- Where memorization sits: members found in each layer, over all scopes and steps, and their share of the layer.
-- $model_id, $method: NULL for all. The sets of all subsets together have the scope 'all', and count apart.

SELECT
    model_id, method, params_id,
    CASE WHEN scope = 'subset' AND scope_id = 'all' THEN 'all' ELSE scope END AS scope,
    site, layer,
    count(*) AS sets,
    sum(len(members))::BIGINT AS members,
    avg(len(members)) AS mean_size,
    avg(len(members) / universe) AS mean_share
FROM neuron_sets
WHERE ($model_id IS NULL OR model_id = $model_id) AND ($method IS NULL OR method = $method)
GROUP BY ALL
ORDER BY model_id, method, params_id, scope, site, layer
