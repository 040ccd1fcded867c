// Private endpoints of the storage account and of the app's Key Vault, and the names by which they are found.
param location string
param tags object
param prefix string
param networkId string
param subnetId string
param storageId string
param keyVaultId string

var places = [
  {
    service: 'blob'
    resourceId: storageId
    zone: 'privatelink.blob.${environment().suffixes.storage}'
  }
  {
    service: 'queue'
    resourceId: storageId
    zone: 'privatelink.queue.${environment().suffixes.storage}'
  }
  {
    service: 'table'
    resourceId: storageId
    zone: 'privatelink.table.${environment().suffixes.storage}'
  }
  {
    service: 'vault'
    resourceId: keyVaultId
    zone: 'privatelink${replace(environment().suffixes.keyvaultDns, '.vault.', '.vaultcore.')}'
  }
]

resource zones 'Microsoft.Network/privateDnsZones@2024-06-01' = [for place in places: {
  name: place.zone
  location: 'global'
  tags: tags
}]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [for (place, i) in places: {
  parent: zones[i]
  name: '${place.service}-link'
  location: 'global'
  tags: tags
  properties: {
    registrationEnabled: false
    virtualNetwork: {
      id: networkId
    }
  }
}]

// One after the other: a storage account refuses a second one while it is busy with the first.
@batchSize(1)
resource endpoints 'Microsoft.Network/privateEndpoints@2024-05-01' = [for place in places: {
  name: '${prefix}${last(split(place.resourceId, '/'))}-${place.service}'
  location: location
  tags: tags
  properties: {
    subnet: {
      id: subnetId
    }
    privateLinkServiceConnections: [
      {
        name: place.service
        properties: {
          privateLinkServiceId: place.resourceId
          groupIds: [
            place.service
          ]
        }
      }
    ]
  }
}]

resource names 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [for (place, i) in places: {
  parent: endpoints[i]
  name: '${place.service}-names'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: place.service
        properties: {
          privateDnsZoneId: zones[i].id
        }
      }
    ]
  }
  dependsOn: [
    links
  ]
}]
