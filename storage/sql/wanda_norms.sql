-- Wanda's activation norms: per feature, the l2 norm over all tokens of a subset of prompts, combined from all shards.
-- Mirrors the sums that Wanda scores with, `FeatureNorms` in tasks/collect/norms.py; the score divides them by the tokens.
-- $model_id: the model. $prompt_set, $subset, $kind: which prompts, each NULL for all. $variant: NULL for 'original'.
-- $layer, $step: NULL for all. $params_id: the collection, NULL for all, each for itself; the two halves of guidance
-- are collections of their own, and their sum_sq add up as those of shards do. norm = sqrt(sum_sq).

WITH chosen AS (
    SELECT params_id, site, layer, step, sum_sq
    FROM activations
    WHERE model_id = $model_id
        AND variant = coalesce($variant, 'original')
        AND ($layer IS NULL OR layer = $layer)
        AND ($step IS NULL OR step = $step)
        AND ($params_id IS NULL OR params_id = $params_id)
        AND sum_sq IS NOT NULL
        AND prompt_id IN (
            SELECT prompt_id
            FROM prompts
            WHERE ($prompt_set IS NULL OR prompt_set = $prompt_set)
                AND ($subset IS NULL OR subset = $subset)
                AND ($kind IS NULL OR kind = $kind)
        )
)
SELECT
    params_id, site, layer, step, feature,
    count(*) AS prompts,
    sum(squares) AS sum_sq,
    sqrt(sum(squares)) AS norm
FROM (
    SELECT params_id, site, layer, step, unnest(range(len(sum_sq))) AS feature, unnest(sum_sq)::DOUBLE AS squares
    FROM chosen
)
GROUP BY params_id, site, layer, step, feature
ORDER BY params_id, site, layer, step, feature
