-- Members that the sets of several scopes have in common: how many scopes hold each, and which. The set of all subsets
-- together is none of them: it shares every member with one.

SELECT
    model_id, method, params_id, scope, site, layer, step, member,
    count(DISTINCT scope_id) AS scopes,
    list(DISTINCT scope_id ORDER BY scope_id) AS scope_ids
FROM members
WHERE NOT (scope = 'subset' AND scope_id = 'all')
GROUP BY model_id, method, params_id, scope, site, layer, step, member
HAVING count(DISTINCT scope_id) > 1
