-- How far the sets of two scopes overlap: all pairs per model, method, parameters, site, layer and step.
-- A function: iou_of(of_layer := '...') reads the files of that layer only; what is left out is not restricted.
-- iou = intersection / union, null when both sets are empty.
-- iou_chance is what independent, uniformly random sets of these sizes n1, n2 in this universe U would have, as a ratio
-- of expectations: (n1 * n2 / U) / (n1 + n2 - n1 * n2 / U).
--
-- One pass over the members instead of one a pair: scopes are numbered, each member gathers the bits of the scopes that
-- hold it, and equal bit patterns are counted. 64 bits hold two blocks of 32 scopes: up to 32 scopes every member is
-- looked at once, and beyond that once for each pair of blocks its scope takes part in.

CREATE MACRO iou_of(of_model := NULL, of_method := NULL, of_params := NULL, of_layer := NULL, of_step := NULL) AS TABLE
WITH sets AS NOT MATERIALIZED (
    SELECT *
    FROM neuron_sets
    WHERE (of_model IS NULL OR model_id = of_model)
        AND (of_method IS NULL OR method = of_method)
        AND (of_params IS NULL OR params_id = of_params)
        AND (of_layer IS NULL OR layer = of_layer)
        AND (of_step IS NULL OR step = of_step)
),
scopes AS (
    SELECT
        *,
        dense_rank() OVER (ORDER BY model_id, method, params_id, site, layer, step, scope) AS setting,
        count(*) OVER peers AS scopes,
        row_number() OVER (peers ORDER BY scope_id) - 1 AS number
    FROM (
        SELECT DISTINCT model_id, method, params_id, site, layer, step, scope, scope_id, universe FROM sets
    )
    WINDOW peers AS (PARTITION BY model_id, method, params_id, site, layer, step, scope)
),
-- Every scope once for each block that its own block is paired with.
paired AS (
    SELECT *, number // 32 AS own, unnest(range((scopes - 1) // 32 + 1)) AS other FROM scopes
),
bits AS (
    SELECT
        * EXCLUDE (scopes),
        dense_rank() OVER (ORDER BY setting, least(own, other), greatest(own, other))::UBIGINT AS pass,
        1::UBIGINT << (number % 32 + CASE WHEN own <= other THEN 0 ELSE 32 END) AS bit
    FROM paired
),
-- Pass and member share one 64-bit number: grouping by one integer is what makes this fast.
held AS (
    SELECT pass_and_member, bit_or(bit) AS mask
    FROM (
        SELECT (pass << 32) + unnest(members) AS pass_and_member, bit
        FROM sets
        JOIN bits
            ON bits.model_id = sets.model_id
            AND bits.method = sets.method
            AND bits.params_id = sets.params_id
            AND bits.site = sets.site
            AND bits.layer = sets.layer
            AND bits.step IS NOT DISTINCT FROM sets.step
            AND bits.scope = sets.scope
            AND bits.scope_id = sets.scope_id
    )
    GROUP BY pass_and_member
),
patterns AS (
    SELECT pass_and_member >> 32 AS pass, mask, count(*) AS n FROM held GROUP BY ALL
),
-- Each pattern once for each scope in it.
carried AS (
    SELECT pass, mask, n, setting, number, own, other
    FROM patterns
    JOIN bits USING (pass)
    WHERE mask & bit != 0
),
sizes AS (
    SELECT setting, number, sum(n)::BIGINT AS size FROM carried WHERE own = other GROUP BY setting, number
),
common AS (
    SELECT one.setting, one.number AS number_1, two.number AS number_2, sum(one.n)::BIGINT AS intersection
    FROM carried AS one
    JOIN carried AS two
        ON two.pass = one.pass
        AND two.mask = one.mask
        AND two.number > one.number
        AND two.own = one.other
        AND two.other = one.own
    GROUP BY ALL
),
counts AS (
    SELECT
        one.model_id, one.method, one.params_id, one.site, one.layer, one.step, one.scope,
        one.scope_id AS scope_id_1,
        two.scope_id AS scope_id_2,
        one.universe,
        coalesce(size_1.size, 0) AS size_1,
        coalesce(size_2.size, 0) AS size_2,
        coalesce(common.intersection, 0) AS intersection
    FROM scopes AS one
    JOIN scopes AS two ON two.setting = one.setting AND two.number > one.number
    LEFT JOIN sizes AS size_1 ON size_1.setting = one.setting AND size_1.number = one.number
    LEFT JOIN sizes AS size_2 ON size_2.setting = two.setting AND size_2.number = two.number
    LEFT JOIN common ON common.setting = one.setting AND number_1 = one.number AND number_2 = two.number
)
SELECT
    * EXCLUDE (chance),
    size_1 + size_2 - intersection AS "union",
    intersection / nullif(size_1 + size_2 - intersection, 0) AS iou,
    chance / nullif(size_1 + size_2 - chance, 0) AS iou_chance
FROM (SELECT *, size_1::DOUBLE * size_2 / universe AS chance FROM counts)
