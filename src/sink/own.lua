#!lua flags=allow-oom
-- Says which service is at work under this name. Returns nothing, or the record of another service
-- that is at work, which then stays.
-- KEYS[1]: `owner`. ARGV: the record, its `system` and its `mode`; for how many milliseconds it
-- lives.
local held = redis.call('GET', KEYS[1])
if held then
  local readable, other = pcall(cjson.decode, held)
  if readable and type(other) == 'table' and (other.system ~= ARGV[2] or other.mode ~= ARGV[3]) then
    return held
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
return false
