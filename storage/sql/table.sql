-- All parts of one table; no rows, but the right columns, as long as it has none.
-- A template: the names in braces are filled in for each table.
SELECT {columns}
FROM (
    {none}
    UNION ALL BY NAME
    SELECT * FROM read_parquet({files}, {options})
)
