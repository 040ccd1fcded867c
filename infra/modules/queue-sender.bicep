// Lets a topic put messages into the account's queues, and do nothing else there.
param storageName string
param sourceId string
param principalId string

var queueDataMessageSender = 'c6a89b2d-59bc-44d0-9896-0f6e12d7b80a'

resource account 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: storageName
}

resource assignment 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  // Not from the principal: it is not known before the deployment begins.
  name: guid(account.id, sourceId, queueDataMessageSender)
  scope: account
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', queueDataMessageSender)
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}
