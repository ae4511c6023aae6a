-- k-wise intersections: how many members are in the sets of k scopes at once, for every k.
-- $model_id, $method, $layer, $step: NULL for all; give the layer and the step where sets are large.
-- exactly, at_least: members held by that many scopes. mean_intersection: size of the intersection of k scopes, mean
-- over all choices of k. chance: the same for random sets of the mean size, U * (mean size / U) ^ k.

WITH sets AS NOT MATERIALIZED (
    SELECT *
    FROM neuron_sets
    WHERE ($model_id IS NULL OR model_id = $model_id)
        AND ($method IS NULL OR method = $method)
        AND ($layer IS NULL OR layer = $layer)
        AND ($step IS NULL OR step = $step)
        AND NOT (scope = 'subset' AND scope_id = 'all')  -- that of all subsets together is none of them
),
held AS (
    SELECT model_id, method, params_id, scope, site, layer, step, member, count(DISTINCT scope_id) AS c
    FROM (SELECT * EXCLUDE (members), unnest(members) AS member FROM sets)
    GROUP BY ALL
),
counts AS (
    SELECT model_id, method, params_id, scope, site, layer, step, c, count(*) AS n FROM held GROUP BY ALL
),
sizes AS (
    SELECT
        model_id, method, params_id, scope, site, layer, step,
        count(DISTINCT scope_id) AS scopes,
        max(universe) AS universe
    FROM sets
    GROUP BY ALL
),
means AS (
    SELECT sizes.*, unnest(range(1, scopes + 1)) AS k FROM sizes
)
SELECT
    means.model_id, means.method, means.params_id, means.scope, means.site, means.layer, means.step,
    scopes, k,
    coalesce(sum(n) FILTER (c = k), 0)::BIGINT AS exactly,
    coalesce(sum(n) FILTER (c >= k), 0)::BIGINT AS at_least,
    -- A member held by c scopes is in C(c, k) of the C(n, k) intersections; the ratio is taken through logarithms.
    coalesce(
        sum(n * exp(lgamma(c + 1) - lgamma(greatest(c - k, 0) + 1) - lgamma(scopes + 1) + lgamma(scopes - k + 1)))
        FILTER (c >= k),
        0
    ) AS mean_intersection,
    any_value(universe) * (sum(n * c) / any_value(scopes * universe)) ** any_value(k) AS chance
FROM means
JOIN counts
    ON counts.model_id = means.model_id
    AND counts.method = means.method
    AND counts.params_id = means.params_id
    AND counts.scope = means.scope
    AND counts.site = means.site
    AND counts.layer = means.layer
    AND counts.step IS NOT DISTINCT FROM means.step
GROUP BY
    means.model_id, means.method, means.params_id, means.scope, means.site, means.layer, means.step, scopes, k
ORDER BY
    means.model_id, means.method, means.params_id, means.scope, means.site, means.layer, means.step, k
