-- Asks Tollward's authorizer about a request (http-request lua.tollward_decide) and tells the client what it said beside the API's
-- answer (http-response lua.tollward_tell). Only a plain "yes" of the authorizer sets txn.tollward, without which haproxy.cfg refuses: also
-- where this script fails, for then HAProxy goes on as if nothing had been asked.

local AUTHORIZER = os.getenv('TOLLWARD_AUTHORIZER') or '127.0.0.1:9192'
-- The authorizer answers within 0.8 s, by itself 503 where a part of it is not reachable.
local TIMEOUT_MS = 1000

-- What the API gets under these names is what the authorizer says; where it says nothing, they are among those to remove.
local COPIED = { 'authorization', 'dpop', 'x-tollward-client', 'x-tollward-subject', 'x-tollward-scopes', 'x-tollward-pass' }
local UPSTREAM_PREFIX = 'x-tollward-upstream-'
local ANSWER_PREFIX = 'x-tollward-answer-'
-- Of the connection to the authorizer, or of a body that is not sent along.
local NOT_ASKED = {
  ['host'] = true, ['content-length'] = true, ['transfer-encoding'] = true, ['upgrade'] = true, ['expect'] = true,
  ['te'] = true, ['trailer'] = true, ['keep-alive'] = true, ['proxy-connection'] = true, ['connection'] = true,
}
-- Of the connection to the authorizer, not of the refusal.
local NOT_TOLD = {
  ['connection'] = true, ['keep-alive'] = true, ['date'] = true, ['content-length'] = true, ['transfer-encoding'] = true,
}

-- Headers of HAProxy's table (name, then values from 0) as a list of values by name.
local function values(list)
  local found = {}
  for index = 0, #list do
    if list[index] ~= nil then found[#found + 1] = list[index] end
  end
  return found
end

local function question(txn)
  local sent, headers = txn.http:req_get_headers(), {}
  for name, list in pairs(sent) do
    if not NOT_ASKED[name] then headers[name] = values(list) end
  end
  -- It may name a header that is set here, which the authorizer refuses.
  if sent['connection'] ~= nil then headers['connection'] = { table.concat(values(sent['connection']), ', ') } end
  headers['x-forwarded-method'] = { txn.sf:method() }
  headers['x-forwarded-uri'] = { txn.sf:pathq() }
  headers['x-forwarded-proto'] = { txn.sf:ssl_fc() == 1 and 'https' or 'http' }
  headers['x-forwarded-for'] = { txn.sf:src() }
  headers['x-forwarded-host'] = values(sent['host'] or {})
  return headers
end

local function refuse(txn, status, headers, body)
  local reply = txn:reply({ status = status })
  for name, list in pairs(headers) do
    if not NOT_TOLD[name] then
      for _, value in ipairs(values(list)) do reply:add_header(name, value) end
    end
  end
  reply:set_body(body)
  txn:done(reply)
end

local function admit(txn, said)
  local tell = {}
  for name in (said['x-tollward-remove'][0] or ''):gmatch('[^,%s]+') do txn.http:req_del_header(name) end
  for _, name in ipairs(COPIED) do
    local value = said[name] and said[name][0]
    if value ~= nil and value ~= '' then txn.http:req_set_header(name, value) end
  end
  for name, list in pairs(said) do
    if name:sub(1, #UPSTREAM_PREFIX) == UPSTREAM_PREFIX then
      txn.http:req_set_header(name:sub(#UPSTREAM_PREFIX + 1), list[0])
    elseif name:sub(1, #ANSWER_PREFIX) == ANSWER_PREFIX then
      tell[name:sub(#ANSWER_PREFIX + 1)] = list[0]
    end
  end
  local decision = said['x-tollward-decision'][0]
  txn.http:req_set_header('x-tollward-decision', decision)
  tell['x-tollward-decision'] = decision
  txn.http:req_set_uri(said['x-tollward-uri'][0])
  txn:set_priv(tell)
  txn:set_var('txn.tollward', 'admitted')
end

local function decide(txn)
  local asked, answer = pcall(function()
    return core.httpclient():get({
      url = 'http://' .. AUTHORIZER .. '/forward-auth?applies=path,query,headers',
      headers = question(txn),
      timeout = TIMEOUT_MS,
    })
  end)
  if not asked or answer == nil then return end
  local said = answer.headers
  local isWhole = said ~= nil and said['x-tollward-decision'] ~= nil
  if answer.status == 200 and isWhole and said['x-tollward-uri'] ~= nil and said['x-tollward-remove'] ~= nil then
    return admit(txn, said)
  end
  if isWhole and answer.status >= 400 and answer.status < 600 then
    refuse(txn, answer.status, said, answer.body)
  end
end

core.register_action('tollward_decide', { 'http-req' }, decide)

core.register_action('tollward_tell', { 'http-res' }, function(txn)
  local tell = txn:get_priv()
  if tell == nil then return end
  for name, value in pairs(tell) do txn.http:res_set_header(name, value) end
end)
