#!lua flags=allow-oom
-- Sends a broadcast, and stores its id.
-- KEYS[1]: the id of the last broadcast. ARGV: the channel; the id of this broadcast; its JSON up
-- to the id of the broadcast before it; the rest of its JSON.
-- Several daemons may send, and only Redis knows which broadcast came before. A broadcast that was
-- sent already, because its reply was lost, is not sent again.
local last = redis.pcall('GET', KEYS[1])
if last == ARGV[2] then
  return 0
end
local prev = type(last) == 'string' and cjson.encode(last) or 'null'
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[1], ARGV[3] .. prev .. ARGV[4])
return 1
