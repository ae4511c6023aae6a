-- Copies: images that each variant under each condition reproduces, verbatim and template apart, and how many there are.
-- Of all audits together, whatever their steps and seeds: the estimates of one audit are in `metrics`.
-- Prompts that share an image, whose texts differ in case, spaces and composed letters only, or that any audit found to
-- have near-duplicates (`clusters`), count together: this mirrors tasks/units.py, but for letters such as the German
-- sharp s, which have no single lower case. copied and share_of_generations mirror `mr` and `mr_generations` in
-- tasks/evaluate/copying.py; prompts are counted beside them.
-- $metric: the score of a generation against its image, NULL for 'sscd'. $threshold: NULL for 0.7.
-- $model_id: NULL for all. $scorer: the model that the scores were made with, NULL for all, each for itself.

WITH RECURSIVE scored AS (
    SELECT generation_id, scorer, max(value) AS score
    FROM scores
    WHERE metric = coalesce($metric, 'sscd') AND ($scorer IS NULL OR scorer = $scorer)
    GROUP BY generation_id, scorer
),
links AS (
    SELECT prompt_id, 'image ' || unnest(image_ids) AS link FROM prompts
    UNION
    SELECT
        prompt_id,
        'text ' || trim(regexp_replace(lower(nfc_normalize(text)), '[\s\x0b\x1c-\x1f\x{85}\p{Z}]+', ' ', 'g'))
    FROM prompts
    UNION
    SELECT prompt_id, 'cluster ' || cluster FROM clusters
),
-- Both ways between each prompt and the least one that it shares something with.
edges AS (
    SELECT prompt_id AS one, least_id AS two
    FROM (SELECT prompt_id, min(prompt_id) OVER (PARTITION BY link) AS least_id FROM links)
    WHERE prompt_id <> least_id
),
both_ways AS (
    SELECT one, two FROM edges UNION SELECT two, one FROM edges
),
reached AS (
    SELECT one AS prompt_id, one AS other FROM both_ways
    UNION
    SELECT reached.prompt_id, both_ways.two FROM reached JOIN both_ways ON both_ways.one = reached.other
),
units AS (
    SELECT prompt_id, min(other) AS unit FROM reached GROUP BY prompt_id
),
counted AS (
    SELECT
        model_id, variant, condition, memorization, scorer,
        coalesce(unit, prompt_id, trigger_id) AS unit,
        count(*) AS generations,
        count(DISTINCT coalesce(prompt_id, trigger_id)) AS prompts,
        avg((score > coalesce($threshold, 0.7))::INTEGER) AS share,
        list(score) AS found
    FROM generations
    JOIN scored USING (generation_id)
    LEFT JOIN units USING (prompt_id)
    LEFT JOIN (SELECT prompt_id, any_value(memorization) AS memorization FROM prompts GROUP BY prompt_id)
        USING (prompt_id)
    WHERE $model_id IS NULL OR model_id = $model_id
    GROUP BY ALL
)
SELECT
    model_id, variant, condition, memorization, scorer,
    sum(generations)::BIGINT AS generations,
    sum(prompts)::BIGINT AS prompts,
    count(*) AS asked,
    count(*) FILTER (share > 0) AS copied,
    avg(share) AS share_of_generations,
    list_median(flatten(list(found))) AS median_score
FROM counted
GROUP BY ALL
ORDER BY model_id, variant, condition, memorization, scorer
