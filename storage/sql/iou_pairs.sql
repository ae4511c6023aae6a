-- IOU of all pairs of scopes, beside the IOU expected by chance.
-- $model_id, $method, $params_id, $layer, $step: NULL for all.

SELECT *
FROM iou_of(
    of_model := $model_id, of_method := $method, of_params := $params_id, of_layer := $layer, of_step := $step
)
ORDER BY model_id, method, params_id, site, layer, step, scope, scope_id_1, scope_id_2
