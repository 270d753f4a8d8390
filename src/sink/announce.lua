#!lua flags=allow-oom
-- KEYS[1]: the id of the last broadcast. ARGV: the channel; the id of this one; its JSON as far as the id of the one
-- before, and the rest. Several daemons may speak: only here is it known who spoke last. One that was sent already,
-- and whose answer was lost, is not sent again.
local last = redis.pcall('GET', KEYS[1])
if last == ARGV[2] then
  return 0
end
local prev = type(last) == 'string' and cjson.encode(last) or 'null'
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[1], ARGV[3] .. prev .. ARGV[4])
return 1
