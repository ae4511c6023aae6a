-- As the paper draws it: mean IOU between scopes at each step, averaged over layers and pairs, beside chance.
-- $model_id, $method: NULL for all. $scope: NULL for all. The set of all subsets together is none of them.

SELECT
    model_id, method, params_id, site, scope, step,
    count(DISTINCT layer) AS layers,
    count(*) AS pairs,
    avg(iou) AS iou,
    stddev_samp(iou) AS std,
    min(iou) AS lowest,
    max(iou) AS highest,
    avg(iou_chance) AS iou_chance
FROM iou_of(of_model := $model_id, of_method := $method)
WHERE ($scope IS NULL OR scope = $scope) AND 'all' NOT IN (scope_id_1, scope_id_2)
GROUP BY model_id, method, params_id, site, scope, step
ORDER BY model_id, method, params_id, site, scope, step
