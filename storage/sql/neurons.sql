-- Activations, one row a neuron.

SELECT
    model_id, variant, prompt_id, site, layer, step, timestep, params_id, tokens,
    unnest(range(greatest(len(mean_abs), len(sum_sq)))) AS neuron,
    unnest(mean_abs) AS mean_abs,
    unnest(sum_sq) AS sum_sq
FROM activations
