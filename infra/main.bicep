// Everything that Vaultferry needs on Azure, into one resource group: see docs/deploying.md.
// Written in the subset of Bicep that the parsers of tests/unit/test_bicep.py read; `az bicep build` has the last word.
targetScope = 'resourceGroup'

@minLength(1)
@maxLength(40)
@description('Tells one installation from another; names are made from it, and azd finds its resources by it.')
param environmentName string

@description('Where all of it is.')
param location string = resourceGroup().location

@description('Added to the tags of every resource.')
param tags object = {}

// --- what is carried ------------------------------------------------------------------------------------------------

@description('Ids of the vaults that some sync writes (a two-way one: both), as in the configuration: each has a queue. `vaultferry resources --parameters FILE` compares them.')
param writtenVaults array

@description('Queue names of those written vaults that have two hyphens in a row in their id, or one at its end; `vaultferry resources` prints them.')
param queueNames object = {}

@description('Resource ids of the Key Vaults that are only read: the app becomes Key Vault Secrets User there.')
param sourceKeyVaults array = []

@description('Resource ids of the Key Vaults that are written, such as both of a two-way sync: the app becomes Key Vault Secrets Officer there.')
param targetKeyVaults array = []

@description('Resource ids of the Key Vaults whose new secret versions are told by Event Grid instead of by schedule only.')
param eventKeyVaults array = []

@description('The https address of a blob with the configuration. Empty: vaultferry.yaml is published with the code.')
param configUrl string = ''

// --- credentials ----------------------------------------------------------------------------------------------------

@secure()
@description('Keys all digests, at least 32 characters (openssl rand -hex 32). Needed once: empty keeps what the Key Vault holds.')
param digestKey string = ''

@secure()
@description('Signs what the relay sends to /audit, at least 16 characters. Needed once: empty keeps what the Key Vault holds.')
param auditSecret string = ''

@description('Whether /audit takes signed requests only. Its secret must have been given once, or the app refuses to start.')
param signAudit bool = true

@description('What else the configuration takes from the environment: plain settings by name. No secrets.')
param plainSettings object = {}

@description('The same for secrets: names of secrets in the app\'s own Key Vault, by the name of the setting.')
param keyVaultSettings object = {}

// --- the app --------------------------------------------------------------------------------------------------------

@allowed([
  '3.11'
  '3.12'
  '3.13'
])
@description('The Python that the app runs on.')
param pythonVersion string = '3.12'

@allowed([
  512
  2048
  4096
])
@description('Memory of one instance.')
param instanceMemoryMB int = 2048

@minValue(40)
@maxValue(1000)
@description('How many instances each function may get. No less than 40 is possible, so this can not keep a vault\'s rate.')
param maximumInstanceCount int = 40

@description('Ids of written vaults whose writer is always running: no cold start, and a price at idle.')
param alwaysReadyVaults array = []

@allowed([
  'debug'
  'info'
  'warning'
  'error'
])
@description('How much is logged.')
param logLevel string = 'info'

// --- the rest -------------------------------------------------------------------------------------------------------

@allowed([
  'Standard_LRS'
  'Standard_ZRS'
  'Standard_GRS'
])
@description('How the storage account is replicated. State, history and queues are in it.')
param storageSku string = 'Standard_LRS'

@description('A virtual network, with private endpoints for the storage account and the app\'s Key Vault.')
param privateNetwork bool = false

@description('Address space of that network: at least a /25.')
param addressPrefix string = '10.80.0.0/24'

@minValue(30)
@maxValue(730)
@description('Days that logs are kept.')
param logRetentionDays int = 30

@description('Who is told of alerts. Empty: there are none.')
param alertEmail string = ''

@description('Ids of the syncs that must succeed from time to time.')
param watchedSyncs array = []

@minValue(1)
@maxValue(48)
@description('Hours without a success after which a watched sync raises an alert.')
param noSuccessHours int = 26

@minValue(0)
@maxValue(48)
@description('Hours without a word from the relay after which there is an alert. 0: no relay is expected.')
param relaySilentHours int = 0

var abbreviations = loadJsonContent('abbreviations.json')
var token = uniqueString(resourceGroup().id, environmentName)
var allTags = union(tags, {
  'azd-env-name': environmentName
})

// The names that shared/resources.py lists, from which a test takes them too.
var writeQueues = [for id in writtenVaults: contains(queueNames, id) ? queueNames[id] : 'vaultferry-to-${id}']
var workQueues = concat([
  'vaultferry-plan'
  'vaultferry-events'
], writeQueues)
var poisonQueues = [for name in workQueues: '${name}-poison']
var tables = [
  'syncsrun'
  'syncschunk'
  'syncobjects'
  'synchistory'
  'syncsmeta'
]
var configContainer = 'vaultferry'
var deploymentContainer = 'app-package'

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: '${abbreviations.userAssignedIdentity}${token}'
  location: location
  tags: allTags
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  params: {
    location: location
    tags: allTags
    workspaceName: '${abbreviations.logAnalytics}${token}'
    insightsName: '${abbreviations.applicationInsights}${token}'
    retentionDays: logRetentionDays
    principalId: identity.properties.principalId
  }
}

module network 'modules/network.bicep' = if (privateNetwork) {
  name: 'network'
  params: {
    location: location
    tags: allTags
    name: '${abbreviations.virtualNetwork}${token}'
    addressPrefix: addressPrefix
  }
}

module storage 'modules/storage.bicep' = {
  name: 'storage'
  params: {
    location: location
    tags: allTags
    name: '${abbreviations.storageAccount}${token}'
    sku: storageSku
    queues: concat(workQueues, poisonQueues)
    tables: tables
    containers: [
      configContainer
      deploymentContainer
    ]
    privateNetwork: privateNetwork
    takesEvents: !empty(eventKeyVaults)
    principalId: identity.properties.principalId
  }
}

module keyVault 'modules/keyvault.bicep' = {
  name: 'keyvault'
  params: {
    location: location
    tags: allTags
    name: '${abbreviations.keyVault}${token}'
    privateNetwork: privateNetwork
    principalId: identity.properties.principalId
    digestKey: digestKey
    auditSecret: auditSecret
  }
}

module endpoints 'modules/endpoints.bicep' = if (privateNetwork) {
  name: 'endpoints'
  params: {
    location: location
    tags: allTags
    prefix: abbreviations.privateEndpoint
    networkId: privateNetwork ? network!.outputs.id : ''
    subnetId: privateNetwork ? network!.outputs.endpointSubnetId : ''
    storageId: storage.outputs.id
    keyVaultId: keyVault.outputs.id
  }
}

module sourceRoles 'modules/vault-role.bicep' = [for (id, i) in sourceKeyVaults: {
  name: 'source-role-${i}-${token}'
  scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
  params: {
    vaultName: last(split(id, '/'))
    principalId: identity.properties.principalId
    write: false
  }
}]

module targetRoles 'modules/vault-role.bicep' = [for (id, i) in targetKeyVaults: {
  name: 'target-role-${i}-${token}'
  scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
  params: {
    vaultName: last(split(id, '/'))
    principalId: identity.properties.principalId
    write: true
  }
}]

module app 'modules/app.bicep' = {
  name: 'app'
  params: {
    location: location
    tags: allTags
    planName: '${abbreviations.plan}${token}'
    name: '${abbreviations.functionApp}${token}'
    identityId: identity.id
    identityClientId: identity.properties.clientId
    subnetId: privateNetwork ? network!.outputs.appSubnetId : ''
    blobEndpoint: storage.outputs.blobEndpoint
    queueEndpoint: storage.outputs.queueEndpoint
    tableEndpoint: storage.outputs.tableEndpoint
    deploymentContainer: deploymentContainer
    insightsConnectionString: monitoring.outputs.connectionString
    keyVaultName: keyVault.outputs.name
    digestKeyName: keyVault.outputs.digestKeyName
    auditName: signAudit ? keyVault.outputs.auditName : ''
    configUrl: configUrl
    logLevel: logLevel
    plainSettings: plainSettings
    keyVaultSettings: keyVaultSettings
    pythonVersion: pythonVersion
    instanceMemoryMB: instanceMemoryMB
    maximumInstanceCount: maximumInstanceCount
    alwaysReadyVaults: alwaysReadyVaults
  }
  dependsOn: [
    endpoints
  ]
}

// Topic, role, subscription: steps of their own, because the subscription is refused until the role is known everywhere.
module places 'modules/vault-location.bicep' = [for (id, i) in eventKeyVaults: {
  name: 'place-${i}-${token}'
  scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
  params: {
    vaultName: last(split(id, '/'))
  }
}]

module topics 'modules/topic.bicep' = [for (id, i) in eventKeyVaults: {
  name: 'topic-${i}-${token}'
  scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
  params: {
    vaultName: last(split(id, '/'))
    name: '${abbreviations.systemTopic}${last(split(id, '/'))}'
    location: places[i].outputs.location
    tags: allTags
  }
}]

module senderRoles 'modules/queue-sender.bicep' = [for (id, i) in eventKeyVaults: {
  name: 'sender-role-${i}-${token}'
  params: {
    storageName: storage.outputs.name
    queueName: workQueues[1]
    principalId: topics[i].outputs.principalId
  }
}]

module subscriptions 'modules/subscription.bicep' = [for (id, i) in eventKeyVaults: {
  name: 'subscription-${i}-${token}'
  scope: resourceGroup(split(id, '/')[2], split(id, '/')[4])
  params: {
    topicName: topics[i].outputs.name
    name: 'vaultferry-${token}'
    storageId: storage.outputs.id
    queueName: workQueues[1]
  }
  dependsOn: [
    senderRoles
    app
  ]
}]

module workbook 'modules/workbook.bicep' = {
  name: 'workbook'
  params: {
    location: location
    tags: allTags
    displayName: 'Vaultferry ${environmentName}'
    workspaceId: monitoring.outputs.workspaceId
  }
}

module alerts 'modules/alerts.bicep' = if (!empty(alertEmail)) {
  name: 'alerts'
  params: {
    location: location
    tags: allTags
    actionGroupName: '${abbreviations.actionGroup}${token}'
    prefix: 'vaultferry-${environmentName}'
    email: alertEmail
    workspaceId: monitoring.outputs.workspaceId
    watchedSyncs: watchedSyncs
    noSuccessHours: noSuccessHours
    relaySilentHours: relaySilentHours
  }
}

@description('The function app, as `func azure functionapp publish` wants it.')
output appName string = app.outputs.name

@description('Where it answers.')
output hostName string = app.outputs.hostName

@description('What the relay forwards to.')
output auditUrl string = 'https://${app.outputs.hostName}/audit'

@description('Client id of the app\'s identity: for roles on what this template does not know.')
output identityClientId string = identity.properties.clientId

@description('Principal id of the app\'s identity.')
output identityPrincipalId string = identity.properties.principalId

@description('The app\'s own Key Vault: where the secrets behind `keyVaultSettings` belong.')
output keyVaultName string = keyVault.outputs.name

@description('The storage account of state, history and queues.')
output storageAccountName string = storage.outputs.name
