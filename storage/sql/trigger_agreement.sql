-- Whether triggers of one image find the same neurons or weights: the mean IOU of their sets, by image, method and layer.
-- $model_id, $method and $params_id name the sets, as one localizer found them from triggers; NULL for all.
-- $trigger_ids: those that are asked about, NULL for all: the store may hold triggers of other audits.
-- searched: false for pairs of points that searches began from, the control: what these share is no memory.
-- iou_chance is what random sets of these sizes would have; see `iou_of`. A trigger that a method found nothing at all
-- for, as NeMo's gate has it, does not count: it says nothing of where the memory lies.

WITH pairs AS (
    FROM iou_of(of_model := $model_id, of_method := $method, of_params := $params_id)
),
found AS (
    SELECT model_id, method, params_id, scope_id
    FROM neuron_sets
    WHERE scope = 'trigger' AND len(members) > 0
    GROUP BY ALL
),
points AS (
    SELECT model_id, trigger_id, image_id, len(loss) > 0 AS searched
    FROM triggers
    WHERE $trigger_ids IS NULL OR trigger_id IN (SELECT unnest($trigger_ids::VARCHAR[]))
)
SELECT
    one.image_id,
    pairs.method,
    pairs.layer,
    one.searched,
    -- Summed in order of size, so that the last digit does not depend on how threads share the rows out.
    list_avg(list(pairs.iou ORDER BY pairs.iou)) AS iou,
    list_avg(list(pairs.iou_chance ORDER BY pairs.iou_chance)) AS iou_chance,
    count(*) AS pairs
FROM pairs
JOIN points AS one ON one.trigger_id = pairs.scope_id_1 AND one.model_id = pairs.model_id
JOIN points AS two ON two.trigger_id = pairs.scope_id_2 AND two.model_id = pairs.model_id
WHERE pairs.scope = 'trigger' AND pairs.iou IS NOT NULL
    AND one.image_id = two.image_id AND one.searched = two.searched
    AND (pairs.model_id, pairs.method, pairs.params_id, pairs.scope_id_1) IN (FROM found)
    AND (pairs.model_id, pairs.method, pairs.params_id, pairs.scope_id_2) IN (FROM found)
GROUP BY ALL
ORDER BY ALL
