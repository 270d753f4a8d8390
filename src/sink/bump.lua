-- Raises version keys. Returns how many.
-- KEYS: `started`, then version keys. ARGV[1]: `started` of this batch; ARGV[i]: the decimal
-- position to which KEYS[i] rises; the last: for how many milliseconds a version key lives unless
-- it is bumped again.
-- Decimals without leading zeros compare by length, then as strings; Lua's numbers lose exactness
-- above 2^53.
-- If another process has raised `started`, or a later batch began and this one was delayed, a
-- reader may have made a version from that, and stored under it what it had read before. So the
-- keys rise beyond `started`, to a position at which no record ends: records are aligned to eight
-- bytes.
local function beyond(position)
  local high = tonumber(string.sub(position, 1, 8), 16)
  local low = tonumber(string.sub(position, 9), 16) + 1
  if low % 8 == 0 then
    low = low + 1
  end
  if low >= 4294967296 then
    high, low = high + 1, low - 4294967296
  end
  return string.format('%08X%08X', high, low)
end
local started = redis.call('GET', KEYS[1])
local foreign
if started and string.match(started, '^%x+$') and #started == 16 and started > ARGV[1] then
  started = beyond(started)
  redis.call('SET', KEYS[1], started)
  foreign = to_decimal(started)
end
for i = 2, #KEYS do
  local held = redis.pcall('GET', KEYS[i])
  local wanted = foreign or ARGV[i]
  local rises = true
  if type(held) == 'string' and string.match(held, '^[1-9]%d*$') then
    rises = #held < #wanted or (#held == #wanted and held < wanted)
  end
  if rises then
    redis.call('SET', KEYS[i], wanted, 'PX', ARGV[#ARGV])
  end
end
return #KEYS - 1
