-- Prompts with the most neurons: how many were found for each prompt, and in how many layers.
-- $model_id, $method: NULL for all.

WITH counted AS (
    SELECT
        model_id, method, params_id, scope_id AS prompt_id,
        sum(len(members))::BIGINT AS neurons,
        count(DISTINCT layer) FILTER (len(members) > 0) AS layers
    FROM neuron_sets
    WHERE scope = 'prompt'
        AND ($model_id IS NULL OR model_id = $model_id)
        AND ($method IS NULL OR method = $method)
    GROUP BY ALL
)
SELECT counted.*, any_value(memorization) AS memorization, any_value(text) AS text
FROM counted
LEFT JOIN prompts USING (prompt_id)
GROUP BY ALL
ORDER BY neurons DESC, model_id, method, params_id, prompt_id
