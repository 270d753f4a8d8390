#!lua flags=allow-oom
-- KEYS[1]: a stream. ARGV: the end of the transaction in decimal digits, the entry's number in it, about how many
-- entries to keep, milliseconds until a stream that nobody writes goes, the history, the same position as 16
-- hexadecimal digits, then fields and values. Within one history an entry that is there already is not added again.
-- After positions went back (another history) ids go on after the stream's last one.
local id = ARGV[1] .. '-' .. ARGV[2]
local function add(as)
  return redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], as,
    'history', ARGV[5], 'position', ARGV[6] .. '-' .. ARGV[2], unpack(ARGV, 7))
end
local added = add(id)
if type(added) == 'table' and added.err then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if not last then
    return redis.error_reply(added.err)
  end
  local held = {}
  for i = 1, #last[2], 2 do
    held[last[2][i]] = last[2][i + 1]
  end
  if held.history == ARGV[5] and held.position then
    local hex, number = string.match(held.position, '^(%x+)-(%d+)$')
    if hex and (hex > ARGV[6] or (hex == ARGV[6] and tonumber(number) >= tonumber(ARGV[2]))) then
      return 0
    end
  end
  added = add(string.match(last[1], '^(%d+)') .. '-*')
  if type(added) == 'table' and added.err then
    return redis.error_reply(added.err)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
