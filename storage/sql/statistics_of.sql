-- Mean and standard deviation of every neuron's activation over prompts of one kind, each collection for itself.
-- A function: statistics_of(of_layer := '...') reads the files of that layer only; what is left out is not restricted,
-- but of_variant is 'original' and of_kind is 'null' unless something else is asked for.
-- Mirrors NeMo's own statistics, `Moments.statistics` in tasks/collect/values.py: a variance that is no more than the
-- rounding of a constant is none.
-- Shards add up by themselves: every row of activations is one prompt, whichever part it lies in.

CREATE MACRO statistics_of(
    of_model := NULL, of_variant := NULL, of_layer := NULL, of_params := NULL, of_kind := NULL, of_prompts := NULL
) AS TABLE
-- Prompts are chosen before their lists are unnested: there are thousands of neurons for each.
WITH known AS NOT MATERIALIZED (
    SELECT model_id, params_id, site, layer, step, mean_abs
    FROM activations
    WHERE (of_model IS NULL OR model_id = of_model)
        AND variant = coalesce(of_variant, 'original')
        AND (of_layer IS NULL OR layer = of_layer)
        AND (of_params IS NULL OR params_id = of_params)
        AND mean_abs IS NOT NULL
        AND prompt_id IN (
            SELECT prompt_id
            FROM prompts
            WHERE kind = coalesce(of_kind, 'null') AND (of_prompts IS NULL OR prompt_set = of_prompts)
        )
),
groups AS (
    SELECT *, row_number() OVER () AS group_number
    FROM (SELECT DISTINCT model_id, params_id, site, layer, step FROM known)
),
-- Group and neuron share one 64-bit number: grouping by one integer is what makes this fast.
statistics AS (
    SELECT
        group_and_neuron,
        count(*) AS prompts,
        avg(activation) AS mean,
        stddev_samp(activation) AS std
    FROM (
        SELECT
            (group_number << 32) + unnest(range(len(mean_abs))) AS group_and_neuron,
            unnest(mean_abs)::DOUBLE AS activation
        FROM known
        JOIN groups
            ON groups.model_id = known.model_id
            AND groups.params_id IS NOT DISTINCT FROM known.params_id
            AND groups.site = known.site
            AND groups.layer = known.layer
            AND groups.step IS NOT DISTINCT FROM known.step
    )
    GROUP BY group_and_neuron
)
SELECT
    model_id, params_id, site, layer, step, group_and_neuron & 4294967295 AS neuron, prompts, mean,
    CASE WHEN std ** 2 * (prompts - 1) <= 1e-12 * prompts * mean ** 2 THEN 0 ELSE std END AS std
FROM statistics
JOIN groups ON group_number = group_and_neuron >> 32
