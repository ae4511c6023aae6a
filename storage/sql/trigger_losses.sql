-- Adversarial triggers: how far each search brought the loss down, and whether the start mattered.
-- kind: of the prompts that the image belongs to; what was never memorized is the control.
-- $model_id, $variant: NULL for all. Points that searches began from are no searches.

WITH with_image AS (
    SELECT image_id, min(kind) AS kind
    FROM (SELECT unnest(image_ids) AS image_id, kind FROM prompts)
    GROUP BY image_id
)
SELECT
    model_id, variant, kind, start, len(loss) AS steps,
    count(*) AS triggers,
    count(DISTINCT image_id) AS images,
    avg(loss[1]) AS first_loss,
    avg(loss[-1]) AS last_loss,
    min(loss[-1]) AS lowest
FROM triggers
LEFT JOIN with_image USING (image_id)
WHERE len(loss) > 0 AND ($model_id IS NULL OR model_id = $model_id) AND ($variant IS NULL OR variant = $variant)
GROUP BY model_id, variant, kind, start, steps
ORDER BY model_id, variant, kind, start, steps
