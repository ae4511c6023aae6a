-- Adversarial triggers: how far each search brought the loss down, and whether the start mattered.
-- $model_id, $variant: NULL for all.

SELECT
    model_id, variant, start, len(loss) AS steps,
    count(*) AS triggers,
    count(DISTINCT image_id) AS images,
    avg(loss[1]) AS first_loss,
    avg(loss[-1]) AS last_loss,
    min(loss[-1]) AS lowest
FROM triggers
WHERE ($model_id IS NULL OR model_id = $model_id) AND ($variant IS NULL OR variant = $variant)
GROUP BY model_id, variant, start, steps
ORDER BY model_id, variant, start, steps
