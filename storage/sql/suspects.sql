-- The prompts of a scan, most suspicious first: each detector's score, its p-value, and whether that flags the prompt.
-- $scan_id: the scan; the last one if left out.

WITH placed AS (
    SELECT
        prompt_id, text, detector, score, p_value, flagged,
        rank() OVER (PARTITION BY detector ORDER BY score DESC) AS place
    FROM findings
    WHERE scan_id = coalesce($scan_id, (SELECT max_by(scan_id, found_at) FROM findings))
)
SELECT text AS prompt, detector, score, p_value, flagged
FROM placed
ORDER BY
    min(p_value) OVER (PARTITION BY prompt_id),
    min(place) OVER (PARTITION BY prompt_id),
    prompt_id, p_value, place, detector
