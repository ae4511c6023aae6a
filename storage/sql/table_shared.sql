-- Parts of one table that share units of work: each unit as the first part has it, in the order of the list.
-- A template: the names in braces are filled in for each table.
SELECT {columns}
FROM read_parquet({files}, {options}, filename = true)
QUALIFY rank() OVER (PARTITION BY {unit} ORDER BY list_position({files}, filename)) = 1
