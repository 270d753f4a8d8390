-- Removes the record of a process that stops.
-- KEYS[1]: `owner`. ARGV[1]: the process, as its record names it.
local held = redis.call('GET', KEYS[1])
local readable, owner = pcall(cjson.decode, held or '')
if readable and type(owner) == 'table' and owner.instance == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
