-- The subspace that memories share: mean IOU between subsets of prompts, beside chance and ordinary prompts.
-- Pairs of verbatim subsets, of template subsets and of one with the other are apart; the control are ordinary prompts
-- taken for memorized ones.
-- Rows with neither layer nor step are over all; rows with one of them are those of the paper.
-- $model_id, $prompt_set: NULL for all. $method: the localizer of the subsets, Wanda if NULL. $params_id: its sets,
-- $control_id: those of its control, NULL for all.

WITH named AS (
    SELECT
        subset AS scope_id,
        CASE WHEN count(DISTINCT coalesce(memorization, 'none')) = 1 THEN any_value(memorization) END AS kind
    FROM prompts
    WHERE kind = 'memorized' AND subset IS NOT NULL AND ($prompt_set IS NULL OR prompt_set = $prompt_set)
    GROUP BY subset
),
-- Subsets that no file names are called by their kind and a number: 'VM 1'.
kinds AS (
    SELECT
        scope_id,
        coalesce(any_value(named.kind), nullif(regexp_extract(scope_id, '^(VM|TM) [0-9]+$', 1), '')) AS kind
    FROM (SELECT DISTINCT scope_id FROM neuron_sets WHERE scope = 'subset')
    LEFT JOIN named USING (scope_id)
    GROUP BY scope_id
),
pairs AS (
    SELECT
        found.*,
        CASE
            WHEN method = concat(coalesce($method, 'wanda'), '-control') THEN 'control'
            WHEN one.kind = two.kind THEN one.kind
            WHEN one.kind <> two.kind THEN 'VM with TM'
            ELSE 'mixed'
        END AS pair
    FROM iou_of(of_model := $model_id) AS found
    LEFT JOIN kinds AS one ON one.scope_id = scope_id_1
    LEFT JOIN kinds AS two ON two.scope_id = scope_id_2
    WHERE scope = 'subset'
        AND 'all' NOT IN (scope_id_1, scope_id_2)
        AND (
            (method = coalesce($method, 'wanda') AND ($params_id IS NULL OR params_id = $params_id))
            OR (method = concat(coalesce($method, 'wanda'), '-control') AND ($control_id IS NULL OR params_id = $control_id))
        )
)
SELECT
    model_id, method, params_id, pair, layer, step,
    count(DISTINCT (scope_id_1, scope_id_2)) AS pairs,
    avg(iou) AS iou,
    stddev_samp(iou) AS std,
    min(iou) AS lowest,
    max(iou) AS highest,
    avg(iou_chance) AS iou_chance
FROM pairs
GROUP BY GROUPING SETS (
    (model_id, method, params_id, pair),
    (model_id, method, params_id, pair, layer),
    (model_id, method, params_id, pair, step)
)
ORDER BY model_id, method, params_id, pair, layer NULLS FIRST, step NULLS FIRST
