-- Parts of one table that share no unit of work with another one.
-- A template: the names in braces are filled in for each table.
SELECT {columns}
FROM read_parquet({files}, {options})
