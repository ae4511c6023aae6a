-- Neuron sets, one row a member. For a weight also its row (output) and column (input) in the layer's matrix.

SELECT *, member // width AS "row", member % width AS "column"
FROM (
    SELECT
        model_id, method, params_id, scope, scope_id, site, layer, step, universe, width,
        unnest(members) AS member
    FROM neuron_sets
)
