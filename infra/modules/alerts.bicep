// Who is told when something does not go as it should.
param location string
param tags object
param actionGroupName string
param prefix string
param email string
param workspaceId string
param watchedSyncs array
param noSuccessHours int
param relaySilentHours int

// Lines are JSON, as shared/logs.py writes them. A row that stands for what did not happen is put amid the window.
var always = [
  {
    name: 'poison'
    text: 'A job came back too often and was moved to a poison queue.'
    severity: 2
    query: 'AppRequests | where Name startswith "poison_" and TimeGenerated > ago(2h)'
  }
  {
    name: 'conflicts'
    text: 'A run met secrets that both sides, or somebody else, had changed.'
    severity: 2
    query: 'AppTraces | where TimeGenerated > ago(2h) and Message has "conflicts" | extend line = parse_json(Message) | where toint(line.conflicts) > 0'
  }
]
var watch = empty(watchedSyncs) ? [] : [
  {
    name: 'no-success'
    text: 'A sync has not succeeded for ${noSuccessHours} hours.'
    severity: 1
    query: 'print sync = dynamic(${string(watchedSyncs)}) | mv-expand sync to typeof(string) | join kind=leftanti (AppTraces | where TimeGenerated > ago(${noSuccessHours}h) and Message has "run succeeded" | extend line = parse_json(Message) | where tostring(line.message) == "run succeeded" | project sync = tostring(line.sync)) on sync | extend TimeGenerated = ago(1h)'
  }
]
var relay = relaySilentHours == 0 ? [] : [
  {
    name: 'relay-silent'
    text: 'The relay has sent nothing for ${relaySilentHours} hours.'
    severity: 2
    query: 'AppRequests | where TimeGenerated > ago(${relaySilentHours}h) and Name == "http_audit" and Success | summarize heard = count() | where heard == 0 | extend TimeGenerated = ago(1h)'
  }
]

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: actionGroupName
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'vaultferry'
    emailReceivers: [
      {
        name: 'email'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
  }
}

resource rules 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = [for rule in concat(always, watch, relay): {
  name: '${prefix}-${rule.name}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: 'Vaultferry: ${rule.name}'
    description: rule.text
    severity: rule.severity
    enabled: true
    scopes: [
      workspaceId
    ]
    evaluationFrequency: 'PT1H'
    // Twice as long: what happened last may not have arrived when it is looked for.
    windowSize: 'PT2H'
    // Each query says how far it looks back; this is as far as any may.
    overrideQueryTimeRange: 'P2D'
    // The tables are made by the first line that arrives.
    skipQueryValidation: true
    autoMitigate: true
    criteria: {
      allOf: [
        {
          query: rule.query
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: {
            numberOfEvaluationPeriods: 1
            minFailingPeriodsToAlert: 1
          }
        }
      ]
    }
    actions: {
      actionGroups: [
        people.id
      ]
    }
  }
}]
