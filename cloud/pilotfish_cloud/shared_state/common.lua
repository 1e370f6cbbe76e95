-- Put before each script. What is stored may have been written by anybody: a key of another type and a number that
-- cannot be meant are begun anew, and counted in pilotfish:repaired.
local MAX_ROWS = 1e9  -- a level beyond is nobody's debt
local MAX_LEASE = 600  -- seconds; what is leased for longer is nobody's
local function repaired()
  if type(redis.pcall('INCR', 'pilotfish:repaired')) ~= 'number' then redis.call('SET', 'pilotfish:repaired', 1) end
end

local function expect(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    repaired()
  end
end

local function number(text, low, high)
  local value = tonumber(text)
  if value == nil or value ~= value or value < low or value > high then return nil end
  return value
end

local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end

-- Leases: a sorted set name -> until, and a hash name -> what belongs to it.
local function prune(leases, values, now)
  expect(leases, 'zset')
  expect(values, 'hash')
  for _, range in ipairs({{'-inf', now}, {now + MAX_LEASE, '+inf'}}) do
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', leases, range[1], range[2])) do
      redis.call('ZREM', leases, name)
      redis.call('HDEL', values, name)
    end
  end
end

local function lease(leases, values, name, value, until_, seconds)
  redis.call('ZADD', leases, until_, name)
  redis.call('HSET', values, name, value)
  for _, key in ipairs({leases, values}) do redis.call('PEXPIRE', key, math.ceil(seconds * 2000)) end
end

local function release(leases, values, name, value)
  if redis.call('HGET', values, name) == value then
    redis.call('ZREM', leases, name)
    redis.call('HDEL', values, name)
  end
end

-- A bucket's level now; nil where there is none. known: what whoever asks takes it for, if it is lost.
local function level(key, limits, known, now)
  if not limits.rows_per_s then return nil end
  expect(key, 'hash')
  local stored = redis.call('HMGET', key, 'level', 'at')
  local rows, at = number(stored[1], -MAX_ROWS, MAX_ROWS), number(stored[2], 0, now + 1)
  if rows == nil or at == nil then
    if stored[1] or stored[2] then repaired() end
    return math.min(limits.capacity, known or limits.capacity)
  end
  return math.min(limits.capacity, rows + limits.rows_per_s * math.max(now - at, 0))
end

local function keep(key, limits, rows, now)
  redis.call('HSET', key, 'level', string.format('%.6f', math.max(rows, -MAX_ROWS)), 'at', string.format('%.6f', now))
  -- A full bucket says as much as none.
  redis.call('PEXPIRE', key, math.ceil(math.min((limits.capacity - rows) / limits.rows_per_s + 60, 4e6) * 1000))
end

local told = cjson.decode(ARGV[1])
local now = clock()
